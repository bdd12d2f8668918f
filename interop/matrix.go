package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// matrix is what is run, and what came of it.
type matrix struct {
	shop    *workshop
	clients []*client
	cases   []testCase
	routes  []route
	proxy   string // nginx's version
	missing map[string]error
	results map[cell]error // nil: it is as it should be
}

// cell is one trial.
type cell struct{ client, test, route string }

func newMatrix(onlyClients, onlyCases string, direct bool) (*matrix, error) {
	w, err := newWorkshop()
	if err != nil {
		return nil, err
	}
	m := &matrix{shop: w, missing: map[string]error{}, results: map[cell]error{}}
	if m.clients, err = choose(clients(w), onlyClients, func(c *client) string { return c.name }); err != nil {
		return nil, err
	}
	if m.cases, err = choose(cases, onlyCases, func(c testCase) string { return c.name }); err != nil {
		return nil, err
	}
	m.routes = slices.DeleteFunc(slices.Clone(routes), func(r route) bool { return direct && r.proxy })
	return m, nil
}

// choose takes those of all whose names are in the list; all if it is empty.
func choose[T any](all []T, list string, name func(T) string) (chosen []T, err error) {
	if list == "" {
		return all, nil
	}
	for want := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(all, func(v T) bool { return name(v) == want })
		if i < 0 {
			return nil, fmt.Errorf("there is no %q", want)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// run installs what there is to install, and tries everything. What goes wrong in a trial is in the results.
func (m *matrix) run(ctx context.Context, log io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "interop")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	rig, err := newRig(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.stop()) }()
	if err := m.install(ctx, log); err != nil {
		return err
	}
	if m.proxy != "" {
		if err := rig.startNginx(ctx, m.shop.nginx); err != nil {
			return err
		}
	}
	rig.goroutines = runtime.NumGoroutine()
	for _, c := range m.clients {
		for _, to := range m.routes {
			for _, test := range m.cases {
				if c.cannot[test.name] != "" || m.missing[c.name] != nil || to.proxy && m.proxy == "" || to.holds && !holdable[test.name] {
					continue
				}
				err := m.try(ctx, log, &trial{rig: rig, shop: m.shop, client: c, route: to}, test)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				m.results[cell{c.name, test.name, to.name}] = err
			}
		}
	}
	return nil
}

// install gets the proxy and the clients. One that can't be had is missing, and that is all.
func (m *matrix) install(ctx context.Context, log io.Writer) error {
	if err := m.shop.buildExample(ctx); err != nil {
		return err
	}
	if slices.ContainsFunc(m.routes, func(r route) bool { return r.proxy }) {
		var err error
		if m.proxy, err = m.shop.installNginx(ctx); err != nil {
			m.missing["nginx"] = err
			fmt.Fprintln(log, "skipping nginx:", err)
		}
	}
	for _, c := range m.clients {
		if err := c.install(ctx, c); err != nil {
			m.missing[c.name] = err
			fmt.Fprintf(log, "skipping %s: %v\n", c.name, err)
		}
	}
	return ctx.Err()
}

func (m *matrix) try(ctx context.Context, log io.Writer, t *trial, test testCase) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	err := test.run(ctx, t)
	verdict := "ok"
	if err != nil {
		verdict = "FAILED: " + strings.ReplaceAll(err.Error(), "\n", "\n\t")
	}
	fmt.Fprintf(log, "%-14s  %-13s  %-28s  %6s  %s\n",
		t.client.name, t.route.name, test.name, time.Since(begin).Round(10*time.Millisecond), verdict)
	return err
}
