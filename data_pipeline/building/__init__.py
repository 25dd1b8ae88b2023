"""From an archive to a dataset: plan, work, checks, and the dataset's card."""
