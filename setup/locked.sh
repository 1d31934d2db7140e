#!/usr/bin/env bash
# Print the lines of constraints.txt for packages, versions with hashes, as a requirements file: setup/locked.sh NAME...
set -euo pipefail
awk -v names="$*" '
    BEGIN { split(names, list, " "); for (i in list) wanted[list[i]] }
    /^[^ #]/ { split($1, parts, "=="); is_wanted = parts[1] in wanted; seen[parts[1]] }
    is_wanted
    END {
        for (name in wanted) if (!(name in seen)) { print "setup/locked.sh: constraints.txt has no " name > "/dev/stderr"; exit 1 }
    }
' "$(dirname "$0")/../constraints.txt"
