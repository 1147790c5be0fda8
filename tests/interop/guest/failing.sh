# A job that fails in the middle, on purpose: every guest has to notice it before it runs its own job.
# shellcheck shell=bash
false
say "a failure went unnoticed"
