#!/usr/bin/env node
const { readFileSync } = require("node:fs");

const answer = readFileSync(process.argv[2], "utf8").trim();
console.log(`<!doctype html><title>issue-1006</title><p>${answer}</p>`);
