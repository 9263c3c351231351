package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

// saveFrom copies all of r into a temporary file, and gives it the name path once it is on the disk.
func saveFrom(r io.Reader, path string) error {
	file, err := os.CreateTemp(filepath.Dir(path), "tmp")
	if err != nil {
		return err
	}
	_, err = io.Copy(file, r)
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}

// receive saves what is posted to any path as a file of that name in directory; its first line is its URL.
func receive(directory string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if err := saveFrom(r.Body, filepath.Join(directory, filepath.Base(r.URL.Path))); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if _, err := fmt.Printf("http://%s\n", listener.Addr()); err != nil {
		return err
	}
	go http.Serve(listener, nil)
	return eachLine(func(string) error { return nil })
}
