"""Networks, which hold parameters only; one file each, on shared layers."""
