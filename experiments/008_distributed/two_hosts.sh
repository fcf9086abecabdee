#!/bin/bash
# Two "hosts" on one machine: two network namespaces with one wire between them, `ray start` in each, one search on both.
# Needs root and iproute2. Writes two_hosts.txt. Stops only what it started.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d /tmp/hosts-XXXX)
a=ac-a-$$ b=ac-b-$$
token=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d " \n") # of this cluster alone
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$token
export RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 PYTHONPATH=$root:$root/tests/execution/chaos

end() {
    for name in "$a" "$b"; do
        for pid in $(ip netns pids "$name" 2>/dev/null); do kill -9 "$pid" 2>/dev/null; done
        ip netns delete "$name" 2>/dev/null
    done
    rm -rf "$work"
}
trap end EXIT

ip netns add "$a" && ip netns add "$b"
ip link add "va$$" netns "$a" type veth peer name "vb$$" netns "$b"
ip -n "$a" address add 10.77.0.1/24 dev "va$$"
ip -n "$b" address add 10.77.0.2/24 dev "vb$$"
for pair in "$a va$$" "$b vb$$"; do
    set -- $pair
    ip -n "$1" link set lo up
    ip -n "$1" link set "$2" up
done

on() { # on NAMESPACE HOSTNAME CMD...: with a hostname, a /tmp for scratch and a cache folder of its own
    local name=$1 host=$2
    shift 2
    mkdir -p "$work/$host/tmp" "$work/$host/cache"
    ip netns exec "$name" unshare --uts bash -c "hostname $host; exec \"\$@\"" - \
        env TMPDIR="$work/$host/tmp" XDG_CACHE_HOME="$work/$host/cache" "$@"
}

{
    echo "host-a: $(ip -n "$a" -brief address show dev "va$$"), host-b: $(ip -n "$b" -brief address show dev "vb$$")"
    on "$a" host-a ray start --head --node-ip-address=10.77.0.1 --port=6399 --num-cpus=1 --temp-dir="$work/a" \
        --include-dashboard=false --block >"$work/a.log" 2>&1 &
    sleep "${WAIT:-15}"
    on "$b" host-b ray start --address=10.77.0.1:6399 --node-ip-address=10.77.0.2 --num-cpus=1 --block >"$work/b.log" 2>&1 &
    sleep "${WAIT:-15}"
    on "$a" host-a ray status --address=10.77.0.1:6399 2>/dev/null | sed -n '/Node status/,/Pending/p'
    begin=$(date +%s)
    on "$a" host-a python "$root/tests/execution/chaos/world.py" "$work/run" 10.77.0.1:6399 24
    echo "driver on host-a ended with $? after $(($(date +%s) - begin)) s"
    echo "trials that ended on each host, from events.jsonl:"
    python - "$work/run" <<'PYTHON'
import collections, json, pathlib, sys
run = pathlib.Path(sys.argv[1])
events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
host = {event["trial"]: event["host"] for event in events if event["event"] == "rung"}
done = collections.Counter(host[event["trial"]] for event in events if event["event"] == "complete")
for name, n in sorted(done.items()):
    print(f"  {name}: {n}")
n_weights = len(list(run.glob("trials/*/weights.safetensors")))
print(f"{len((run / 'trials.jsonl').read_text().splitlines())} records, {n_weights} with weights on the driver's disk")
PYTHON
    on "$a" host-a python -m autocompress status "$work/run" | sed "s#$work/##"
    if [[ ! -s $work/run/trials.jsonl ]]; then tail -n 20 "$work/a.log" "$work/b.log"; fi
} 2>&1 | tee "$here/two_hosts.txt"
