"""Where a stage's command runs: `local` (a subprocess of this machine), later `kubernetes` (a pod)."""
