package main

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/status"
)

// noteHandler makes notes of what a Sender logs: how streams ended that it did not end itself, and what the server lost.
type noteHandler struct {
	note func(format string, args ...any)
}

func newNoteLogger(note func(string, ...any)) *slog.Logger { return slog.New(noteHandler{note}) }

// Enabled implements slog.Handler.
func (h noteHandler) Enabled(_ context.Context, l slog.Level) bool {
	return l == slog.LevelInfo || l == slog.LevelWarn // the Sender's end, an error, is what Close returns
}

// Handle implements slog.Handler.
func (h noteHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		h.note("upload: %s", r.Message)
		return nil
	}
	var why string
	var wait time.Duration
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "error":
			if err, ok := a.Value.Any().(error); ok {
				why = status.Convert(err).Message()
			}
		case "delay":
			wait = a.Value.Duration()
		}
		return true
	})
	if len(why) > 40 { // with the rest it fits a line
		why = why[:40] + "…"
	}
	h.note("upload cut off (%s), goes on in %v", why, short(wait))
	return nil
}

// WithAttrs implements slog.Handler.
func (h noteHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h noteHandler) WithGroup(string) slog.Handler { return h }
