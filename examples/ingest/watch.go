package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"

	"example.com/flow"
	"example.com/flow/flowdebug"
	"example.com/flow/otelflow"
)

// watch is what -debug and -metrics serve: the page and the metrics of the server's Flow, over a restart too.
type watch struct {
	observers []flow.Observer
	page      *flowdebug.Page     // nil without -debug
	telemetry *otelflow.Telemetry // nil without -metrics
	gauges    metric.Registration // of the Flow that is shown; nil: none
	servers   []*http.Server
	notes     []string // what is served where
}

const (
	shownAs     = "ingest"
	debugPath   = "/debug/flow/"
	metricsPath = "/metrics"
)

// newWatch serves what cfg asks for. The observers see what m sees.
func newWatch(cfg *config, m *metrics) (*watch, error) {
	w := &watch{observers: []flow.Observer{m.see}}
	if cfg.debug != "" {
		w.page = flowdebug.New()
		w.observers = append(w.observers, w.page.Observer(shownAs))
		if err := w.serve(cfg.debug, debugPath, underOwnNames(cfg.debug, w.page), "watch it on"); err != nil {
			return nil, errors.Join(fmt.Errorf("-debug: %w", err), w.close())
		}
	}
	if cfg.metrics != "" {
		registry := prometheus.NewRegistry()
		exporter, err := promexporter.New(promexporter.WithRegisterer(registry),
			promexporter.WithoutTargetInfo(), promexporter.WithoutScopeInfo())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("-metrics: %w", err), w.close())
		}
		w.telemetry = otelflow.New(otelflow.WithName(shownAs),
			otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(exporter))))
		w.observers = append(w.observers, w.telemetry.Observer())
		if err := w.serve(cfg.metrics, metricsPath, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), "scrape"); err != nil {
			return nil, errors.Join(fmt.Errorf("-metrics: %w", err), w.close())
		}
	}
	return w, nil
}

// see is the Flow's Observer.
func (w *watch) see(ctx context.Context, e flow.Event) {
	for _, see := range w.observers {
		see(ctx, e)
	}
}

// show has f be what is watched, instead of the one before.
func (w *watch) show(f watched) (err error) {
	if w.page != nil {
		w.page.Add(shownAs, f)
	}
	if w.telemetry == nil {
		return nil
	}
	if w.gauges != nil {
		err = w.gauges.Unregister()
	}
	gauges, e := w.telemetry.Watch(f)
	w.gauges = gauges
	return errors.Join(err, e)
}

// watched is a Flow, whatever its messages.
type watched interface {
	flowdebug.Source
	Stats() flow.Stats
}

func (w *watch) serve(addr, path string, h http.Handler, what string) error {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+path, h)
	mux.Handle("GET /{$}", http.RedirectHandler(path, http.StatusFound))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	w.servers = append(w.servers, s)
	w.notes = append(w.notes, fmt.Sprintf("%s http://%s%s", what, lis.Addr(), path))
	go func() { _ = s.Serve(lis) }() // until close
	return nil
}

// underOwnNames serves h under addresses, as localhost, and by the name in addr if that has one. Any other name may be that of
// another site, whose owner has it lead to this machine, so that a browser here shows that site's script what h answers (DNS
// rebinding). An address in the request can't be made up like that: the script's site would have to be served from there.
func underOwnNames(addr string, h http.Handler) http.Handler {
	own := hostOf(addr)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r.Host)
		_, err := netip.ParseAddr(host)
		if err != nil && !strings.EqualFold(host, "localhost") && (own == "" || !strings.EqualFold(host, own)) {
			http.Error(w, "ask for this page by an address, as localhost, or by the name that -debug was given", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// hostOf returns the host of an address that may have a port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return strings.Trim(addr, "[]")
}

// close ends what is served, at once: a page that somebody has open would never end by itself.
func (w *watch) close() error {
	var errs []error
	for _, s := range w.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
