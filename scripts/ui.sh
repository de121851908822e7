#!/usr/bin/env bash
# Builds the admin UI if its sources are newer than the last build. The control plane embeds admin-ui/dist.
set -euo pipefail
cd "$(dirname "$0")/../admin-ui"

if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    npm ci --no-audit --no-fund
fi
if [ ! -e dist/index.html ] || [ -n "$(find src public index.html package.json precompress.js vite.config.ts tsconfig*.json -newer dist/index.html -print -quit 2>/dev/null)" ]; then
    npm run build
fi
