// Command seed does what etcd's snapshot store of 2015 did with a snapshot's bytes: a pipe, an HTTP
// POST, a copy into a temporary file, fsync, rename. It is what snapstore is measured against.
//
// Only the way of the bytes is here: no raft, no timers, no checks, no digests. `seed receive DIRECTORY`
// serves on a free port of this machine; `seed send` posts files. Both talk in lines over their standard
// streams, and end when standard input does.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "seed:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "receive":
		return receive(arguments[1])
	case len(arguments) == 1 && arguments[0] == "send":
		return send()
	}
	return errors.New("usage: seed receive DIRECTORY | seed send")
}

// eachLine calls do for each line of standard input.
func eachLine(do func(line string) error) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := do(lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}
