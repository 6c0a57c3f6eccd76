// What Go's decoder of terminal sizes makes of inputs: the loop of handleResizeEvents, on bytes instead of a stream.
// In: lines of hex. Out: for each a line of JSON, the sizes that were decoded before the decoder stopped.
//
//	python -m tests.protocol.gosizes tests/protocol/sizes.json
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
)

type terminalSize struct {
	Width  uint16
	Height uint16
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		input, err := hex.DecodeString(lines.Text())
		if err != nil {
			panic(err)
		}
		decoder := json.NewDecoder(bytes.NewReader(input))
		sizes := [][2]uint16{}
		for {
			size := terminalSize{}
			if err := decoder.Decode(&size); err != nil {
				break
			}
			sizes = append(sizes, [2]uint16{size.Width, size.Height})
		}
		text, _ := json.Marshal(sizes)
		fmt.Fprintln(out, string(text))
	}
}
