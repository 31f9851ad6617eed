# Reads the output of go test -json: one line for each package as it ends, and
# for each test that took half a minute, the output of what failed, and the counts of the tier on the last line, for
# scripts/test, in the file named by -v counts=FILE.
# A skipped test is a failed one, but for -v race=1: the race detector and
# testing/synctest do not go together. Those are listed in the file named by -v spared=FILE.

function field(name,    at, rest) {
	at = index($0, "\"" name "\":\"")
	if (!at) return ""
	rest = substr($0, at + length(name) + 4)
	if (!match(rest, /^([^"\\]|\\.)*/)) return ""
	return substr(rest, 1, RLENGTH)
}
function plain(s) {
	gsub(/\\n/, "\n", s); gsub(/\\t/, "\t", s); gsub(/\\"/, "\"", s)
	gsub(/\\u003c/, "<", s); gsub(/\\u003e/, ">", s); gsub(/\\u0026/, "\\&", s)
	gsub(/\\u001b\[[0-9;]*m/, "", s); gsub(/\\\\/, "\\", s)
	return s
}
function seconds() {
	return match($0, /"Elapsed":[0-9.]+/) ? substr($0, RSTART + 10, RLENGTH - 10) : "0"
}

!/^\{/ { print; next } # not JSON: the go command itself has something to say

{
	action = field("Action"); pkg = field("Package"); test = field("Test")
	short = pkg; sub(/^github.com\/isthmus-net\/isthmus/, ".", short)
	key = pkg SUBSEP test
}
action == "output" { out[key] = out[key] plain(field("Output")) }
action == "build-output" { printf "%s", plain(field("Output")) }
test != "" && action == "pass" { passed++; inPkg[pkg]++; delete out[key] }
test != "" && (action == "fail" || (action == "skip" && !race)) {
	failed++; broken[pkg]++
	printf "FAIL  %s %s%s\n%s", short, test, action == "skip" ? " (skipped: a test that cannot run fails)" : "", out[key]
}
test != "" && action == "skip" && race { skipped++; print pkg, test > spared }
test != "" && action == "pass" && seconds() + 0 >= 30 { printf "      %-34s %7.1f s\n", test, seconds() }
test == "" && action == "pass" { printf "ok    %-22s %4d tests %7.1f s\n", short, inPkg[pkg], seconds() }
test == "" && action == "fail" {
	if (!broken[pkg]) { failed++; printf "FAIL  %s, outside of its tests\n%s", short, out[key] }
	printf "FAIL  %-22s %4d passed, %d failed %7.1f s\n", short, inPkg[pkg], broken[pkg] ? broken[pkg] : 1, seconds()
}
END { printf "%d %d %d\n", passed, failed, skipped > counts }
