# What a task may do with its mappings.
set -e
echo "args: $1"
cat "$INPUT/a.txt"; echo
cat "$INPUT/sub/b.txt"; echo
cat "$GENOME"; echo
echo "to stderr" >&2
mkdir -p "$OUTPUT/deep" "$OUTPUT/empty"
cp "$INPUT/a.txt" "$OUTPUT/deep/copy.txt"
# Inputs may be changed locally.
echo changed >> "$INPUT/a.txt"
echo new > "$INPUT/new.txt"
test "$(cat "$INPUT/new.txt")" = new
# A single output file, in a directory that nothing else has made.
single=$(dirname "$OUTPUT")/single
echo $? > "$single/rc"
