package main

import "path/filepath"

// database is where one is: a file that was named, or one in a temporary folder.
type database struct {
	file string
	dir  string // temporary; "" if the file was named
}

func (c *config) database() (database, error) {
	if c.db != "" {
		return database{file: c.db}, nil
	}
	dir, err := temporary.make()
	return database{file: filepath.Join(dir, "ingest.db"), dir: dir}, err
}

// String names it for a line about the server.
func (d database) String() string {
	if d.dir != "" {
		return "a temporary database"
	}
	return "database " + d.file
}

// remove removes it if it is temporary.
func (d database) remove() {
	if d.dir != "" {
		temporary.remove(d.dir)
	}
}
