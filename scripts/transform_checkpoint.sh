#!/usr/bin/env bash
# Convert .ckpt weights by several processes: each makes its own share of the target's ranks.
# The exit code is that of the first process that failed. PYTHON names the interpreter that has reshard; without, it is the one
# that stands beside this script, where the package is installed, or python.

usage() {
  echo "usage: bash transform_checkpoint.sh SRC_CKPT SRC_STRATEGY DST_CKPT_DIR DST_STRATEGY WORLD_SIZE PROCESS_NUM [PREFIX]"
  echo "  SRC_STRATEGY, DST_STRATEGY: a file, a folder, or None for one full checkpoint; the rest may be None, too: not given"
  echo "example: bash transform_checkpoint.sh llama.ckpt None out strategy/ 8 2"
}

number='^[1-9][0-9]*$'
given() { if [ -z "$1" ] || [ "$1" = None ]; then echo "$2"; else echo "$1"; fi; }
world_size=$(given "$5" 1) process_num=$(given "$6" 1)
if [ $# -lt 6 ] || [ $# -gt 7 ] || ! [[ $world_size =~ $number && $process_num =~ $number ]]; then
  usage >&2
  exit 2
fi
src=$1 src_strategy=$2 dst=$3 dst_strategy=$4 prefix=$7
if [ "$process_num" -gt "$world_size" ]; then
  echo "warning: PROCESS_NUM $process_num is bigger than WORLD_SIZE $world_size: set to $world_size" >&2
  process_num=$world_size
fi
if [ $((world_size % process_num)) -ne 0 ]; then
  echo "error: PROCESS_NUM $process_num does not divide WORLD_SIZE $world_size" >&2
  exit 2
fi

beside=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/python
[ -x "$beside" ] || beside=python
mkdir -p log || exit 4
rm -f log/transform_*.log

pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait; exit 130' INT TERM
for ((i = 0; i < process_num; i++)); do
  rank_id=$((i * (world_size / process_num)))
  echo "start device_$i with rank_id $rank_id"
  RANK_ID=$rank_id RESHARD_CALLED=transform_checkpoint.sh "${PYTHON:-$beside}" -m reshard compat transform_checkpoint \
    --src_checkpoint="$src" --src_strategy="$src_strategy" \
    --dst_checkpoint_dir="$dst" --dst_strategy="$dst_strategy" \
    --prefix="$prefix" --world_size="$world_size" --transform_process_num="$process_num" \
    --transform_by_rank=True >"log/transform_$i.log" 2>&1 &
  pids+=($!)
  echo "transform log saved in $PWD/log/transform_$i.log"
done

failed=0 shown=
for i in "${!pids[@]}"; do
  wait "${pids[$i]}"
  code=$?
  if [ $code -ne 0 ]; then
    last=$(tail -n 5 "log/transform_$i.log")
    if [ "$last" = "$shown" ]; then
      echo "error: process $i failed with exit code $code, and the same error; see log/transform_$i.log" >&2
    else
      printf '%s\n' "error: process $i failed with exit code $code; the end of log/transform_$i.log:" "$last" >&2
      shown=$last
    fi
    [ $failed -ne 0 ] || failed=$code
  fi
done
if [ $failed -eq 0 ]; then
  echo "transform finished"
else
  echo "transform failed" >&2
fi
exit $failed
