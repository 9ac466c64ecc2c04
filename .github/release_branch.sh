#!/usr/bin/env bash
# Makes the branch that a release is made from: the present commit without requirements.txt, which the release refuses
# beside a config.json, since an app's packages are in its image; and with absolute addresses in the apps' pages, which
# an instance shows without their repository. The working folder stays as it is.
set -euo pipefail

version=${1:-}
if [[ ! $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
    echo "usage: .github/release_branch.sh v0.1.0 [owner/name]" >&2
    exit 2
fi
cd "$(git rev-parse --show-toplevel)"
if [[ -n $(git status --porcelain) ]]; then
    echo "Commit or remove what is changed first: the branch is made of the last commit." >&2
    exit 2
fi
repository=${2:-$(git remote get-url origin 2> /dev/null | sed -nE 's#^(https://github\.com/|git@github\.com:)##p' | sed 's/\.git$//')}
if [[ ! $repository =~ ^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$ ]]; then
    echo "The pages need the address of a repository on GitHub: .github/release_branch.sh $version owner/name" >&2
    exit 2
fi

GIT_INDEX_FILE=$(mktemp -u)
export GIT_INDEX_FILE
trap 'rm -f "$GIT_INDEX_FILE"' EXIT
git read-tree HEAD
git rm --cached --quiet requirements.txt
for page in README.md serve/README.md; do
    blob=$(git show "HEAD:$page" |
        python3 .github/absolute_links.py "$(dirname "$page")" "$repository" "release-$version" |
        git hash-object -w --stdin)
    git update-index --cacheinfo "100644,$blob,$page"
done
commit=$(git commit-tree "$(git write-tree)" -p HEAD -m "release $version: the packages are in the image")
git branch --force "release-$version" "$commit"
echo "The branch release-$version is the present commit without requirements.txt, its pages lead to $repository."
