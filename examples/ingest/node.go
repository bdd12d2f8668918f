package main

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// node is where the server runs: its database and its numbers outlive a restart.
type node struct {
	cfg *config
	database
	metrics *metrics
	watch   *watch

	mu     sync.Mutex
	server *server
}

func newNode(cfg *config, addr string) (*node, error) {
	db, err := cfg.database()
	if err != nil {
		return nil, err
	}
	n := &node{cfg: cfg, database: db, metrics: newMetrics(cfg.slow)}
	if n.watch, err = newWatch(cfg, n.metrics); err == nil {
		err = n.start(addr)
	}
	if err != nil {
		return nil, errors.Join(err, n.clean())
	}
	return n, nil
}

// start starts a server and has it be the one that is watched.
func (n *node) start(addr string) error {
	s, err := startServer(n.cfg, addr, n.file, n.watch.see)
	if err != nil {
		return err
	}
	if err := n.watch.show(s.flow); err != nil {
		return errors.Join(err, s.stop())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.server = s
	return nil
}

func (n *node) current() *server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server
}

// restart stops the server as an operator would, and starts another one on the same address and database.
func (n *node) restart() error {
	old := n.current()
	if err := old.stop(); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	if err := n.start(old.addr); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	return nil
}

func (n *node) stop() error {
	err := n.current().stop()
	return errors.Join(err, n.clean())
}

func (n *node) clean() (err error) {
	if n.watch != nil {
		err = n.watch.close()
	}
	n.remove()
	return err
}

// progress is what the live line says about the server, what matters most first. The durations are medians.
func (n *node) progress() (uint64, []string) {
	stored, handler, wait := n.metrics.now()
	st := n.current().flow.Stats()
	return stored, []string{
		fmt.Sprintf("in flight %d", st.InFlight), fmt.Sprintf("waiting %d", st.Waiting),
		fmt.Sprintf("handler %v", short(handler)), fmt.Sprintf("wait %v", short(wait)),
	}
}

// short rounds a duration to what one reads at a glance.
func short(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond)
	case d >= 100*time.Microsecond:
		return d.Round(10 * time.Microsecond)
	}
	return d
}
