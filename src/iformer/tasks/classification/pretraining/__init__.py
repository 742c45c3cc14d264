"""Pretraining without labels: the backbone learns the features of a frozen teacher."""
