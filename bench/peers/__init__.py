"""The same encoder in pocketformer and in other CPU runtimes: speed, fidelity, cold start (see prepare.py first)."""
