"""Recipes that are known to work, as data: a name, and the steps."""

PRESETS = {
    # Han et al. 2016, arXiv:1510.00149: prune, retrain, share, train the centroids; the file does the coding.
    "deep compression": [
        ("zero_pruning", {"sparsity": 0.92}),
        ("retrain", {"epochs": 2}),
        ("weight_sharing", {"bits": 5}),
        ("retrain", {"epochs": 1}),
    ],
    # Neurons that go, so that every runtime is faster, then 8 bits, which runtimes for integers like.
    "small and fast": [
        ("activation_pruning", {"sparsity": 0.6, "statistic": "variance"}),
        ("retrain", {"epochs": 2, "teacher": True}),
        ("quantization", {"bits": 8}),
        ("retrain", {"epochs": 1, "teacher": True}),
    ],
    # Little by little to few weights of few values, taught by the network as it was.
    "smallest file": [
        ("zero_pruning", {"sparsity": 0.9}),
        ("retrain", {"epochs": 2, "teacher": True}),
        ("zero_pruning", {"sparsity": 0.96}),
        ("retrain", {"epochs": 3, "teacher": True}),
        ("weight_sharing", {"bits": 3}),
        ("retrain", {"epochs": 2, "teacher": True}),
    ],
}
