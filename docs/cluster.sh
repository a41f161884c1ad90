#!/bin/bash
# All claims as one array job, on whatever nodes are free: sbatch cluster.sh
#SBATCH --job-name=claims
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --output=claims-%A-%a.out
# For devices: #SBATCH --gpus=1
set -euo pipefail
shared=$SLURM_SUBMIT_DIR/results # a folder that every node sees
source "$SLURM_SUBMIT_DIR/.venv/bin/activate"

# Each task measures its part of the cells of every study, and says which part that is; the last to finish a study
# writes its table and figure, and the last of all the table of all claims. Whatever was killed is made up by the same
# sbatch again: finished cells stay.
nfd-jax claims --scale laptop --output "$shared/studies"

# Before:     nfd-jax claims --output results/studies --dry-run    lists what is missing, and about its seconds
# Afterwards: nfd-jax claims --output results/studies --part all   makes what failed
