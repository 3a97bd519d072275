#!/bin/bash
#SBATCH --job-name=xact --gres=gpu:4 --cpus-per-task=32 --mem=128G --time=04:00:00
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
trap 'kill -USR1 $!' USR1                        # SLURM warns this shell ahead of the time limit; xact ends with 75
xact build --cluster local "$@" &
wait $!
code=$?
if [ $code -eq 138 ]; then wait $!; code=$?; fi  # 128 + USR1: the warning ended the first wait, not yet xact
if [ $code -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
