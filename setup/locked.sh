#!/usr/bin/env bash
# Print the lines of constraints.txt for packages, versions with hashes, as a requirements file: setup/locked.sh NAME...
set -euo pipefail
awk -v names="$*" '
    BEGIN { count = split(names, list, " "); for (i in list) wanted[list[i]] }
    /^[^ #]/ { is_wanted = ($1 ~ /==/) && (substr($1, 1, index($1, "==") - 1) in wanted); found += is_wanted }
    is_wanted
    END { if (found < count) { print "setup/locked.sh: constraints.txt does not have all of " names > "/dev/stderr"; exit 1 } }
' "$(dirname "$0")/../constraints.txt"
