"""A trial (a technique, its setting, the retraining), and all that is done with trials."""
