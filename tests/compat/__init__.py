"""Real buildpacks, built from clones through a table of cases: what `scripts/compat` runs."""
