#!/usr/bin/env bash
# Makes the branch that a release is made from: the present commit without requirements.txt, which the release refuses
# beside a config.json, since an app's packages are in its image. The working folder stays as it is.
set -euo pipefail

version=${1:-}
if [[ ! $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
    echo "usage: .github/release_branch.sh v0.1.0" >&2
    exit 2
fi
cd "$(git rev-parse --show-toplevel)"
if [[ -n $(git status --porcelain) ]]; then
    echo "Commit or remove what is changed first: the branch is made of the last commit." >&2
    exit 2
fi

GIT_INDEX_FILE=$(mktemp -u)
export GIT_INDEX_FILE
trap 'rm -f "$GIT_INDEX_FILE"' EXIT
git read-tree HEAD
git rm --cached --quiet requirements.txt
commit=$(git commit-tree "$(git write-tree)" -p HEAD -m "release $version: the packages are in the image")
git branch --force "release-$version" "$commit"
echo "The branch release-$version is the present commit without requirements.txt."
