"""Recipes that are known to work, as data: a name, and the steps.

Their numbers were chosen on the validation images of MNIST and Fashion-MNIST, for the pretrained networks.
"""

PRESETS = {
    # Han et al. 2016, arXiv:1510.00149: prune, retrain, share, train the centroids; the file does the coding.
    "deep compression": [
        ("zero_pruning", {"sparsity": 0.92}),
        ("retrain", {"epochs": 4}),
        ("weight_sharing", {"bits": 5}),
        ("retrain", {"epochs": 1}),
    ],
    # Neurons that go, so that every runtime is faster, then 8 bits, which runtimes for integers like.
    "small and fast": [
        ("activation_pruning", {"sparsity": 0.5, "statistic": "variance"}),
        ("retrain", {"epochs": 3}),
        ("quantization", {"bits": 8}),
        ("retrain", {"epochs": 1}),
    ],
    # First whole neurons, whose weights need no positions; then weights, little by little; then few values.
    "smallest file": [
        ("activation_pruning", {"sparsity": 0.6, "statistic": "variance"}),
        ("retrain", {"epochs": 2}),
        ("zero_pruning", {"sparsity": 0.8}),
        ("retrain", {"epochs": 2}),
        ("zero_pruning", {"sparsity": 0.9}),
        ("retrain", {"epochs": 5}),
        ("weight_sharing", {"bits": 3, "biases": True}),
        ("retrain", {"epochs": 2}),
    ],
}
