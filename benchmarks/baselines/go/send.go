package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// writeTo copies the file at path into w as io.Copy does between two that know no shortcut: 32 KiB at a
// time, through a buffer of its own.
func writeTo(w io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}

// post sends the file at path as the body of one request. Its length is not told, as that of a pipe
// never is.
func post(url, path string) error {
	reader, writer := io.Pipe()
	go func() {
		writer.CloseWithError(writeTo(writer, path))
	}()
	answer, err := http.Post(url, "application/octet-stream", reader)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("%s: %s", answer.Status, said)
	}
	return err
}

// send posts a file for each line "URL PATH", and answers "sent".
func send() error {
	return eachLine(func(line string) error {
		url, path, found := strings.Cut(line, " ")
		if !found {
			return fmt.Errorf("not a URL and a path: %q", line)
		}
		if err := post(url, path); err != nil {
			return err
		}
		_, err := fmt.Println("sent")
		return err
	})
}
