"""The tasks that train with the encoder in the loop: fine-tuning and dense probing."""


def check_config(config):
    pass


def run(session):
    pass
