//go:build !linux

package postgres

import (
	"context"
	"errors"
)

// Server is a PostgreSQL server of one's own. Elsewhere than on Linux there is none.
type Server struct {
	DSN     string
	Version string
	Port    int
}

// Start returns an error: the folder that it looks into is Debian's.
func Start(context.Context, ...string) (*Server, error) {
	return nil, errors.New("PostgreSQL is started by itself on Linux only: name a running server")
}

// Stop does nothing.
func (*Server) Stop() error { return nil }
