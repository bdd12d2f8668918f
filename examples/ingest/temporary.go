package main

import (
	"os"
	"sync"
	"time"
)

// temporary are the folders of temporary databases: a program that is ended at once removes them too.
var temporary folders

type folders struct {
	mu   sync.Mutex
	dirs map[string]struct{}
}

// make makes a folder.
func (f *folders) make() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, err := os.MkdirTemp("", "ingest")
	if err != nil {
		return "", err
	}
	if f.dirs == nil {
		f.dirs = map[string]struct{}{}
	}
	f.dirs[dir] = struct{}{}
	return dir, nil
}

// remove removes dir and what is in it.
func (f *folders) remove(dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.dirs, dir)
	_ = os.RemoveAll(dir)
}

// removeAll removes all folders, and lets nobody make another. Their databases may still be open and be written to: a
// file that comes while its folder is removed needs one more try.
func (f *folders) removeAll() {
	f.mu.Lock() // for ever: the program ends
	for dir := range f.dirs {
		for range 50 {
			if os.RemoveAll(dir) == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
