"""Methods of pretraining: one file each, behind the protocol of `protocol.py`."""
