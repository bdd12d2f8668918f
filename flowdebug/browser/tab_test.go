package browser_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"

	"example.com/flow/flowdebug/browser"
)

// chromium is one for all tests: each has a tab of its own.
var chromium context.Context

func TestMain(m *testing.M) {
	flag.Parse()
	b, cancel, err := browser.Open(context.Background())
	switch {
	case err == nil:
		chromium = b
	case !errors.Is(err, browser.ErrNoChromium):
		fmt.Fprintln(os.Stderr, "Chromium does not start:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err == nil {
		cancel()
	}
	os.Exit(code)
}

// tab is a page that is looked at.
type tab struct {
	t   testing.TB
	ctx context.Context

	mu  sync.Mutex
	log []string // what the page complained of
}

// openTab opens one, and skips the test where there is no Chromium. first is what is done before the page is loaded.
func openTab(t testing.TB, url string, first ...chromedp.Action[chromedp.Void]) *tab {
	t.Helper()
	if chromium == nil {
		t.Skip(browser.ErrNoChromium)
	}
	b := &tab{t: t}
	var cancel context.CancelFunc
	b.ctx, cancel = chromedp.NewContext(chromium)
	logged, over := chromedp.Console(b.ctx), make(chan struct{})
	go func() {
		defer close(over)
		for m, err := range logged {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.log = append(b.log, m.String())
			b.mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); <-over })
	b.do(chromedp.EmulateViewport(1000, 900))
	b.do(first...)
	b.do(chromedp.Navigate(url))
	return b
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// complaints are what the page has written to the console: a violated policy, an exception.
func (b *tab) complaints() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.log, "\n")
}

// eval is what an expression is in the page.
func eval[T any](b *tab, js string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		b.t.Fatalf("%s: %v", js, err)
	}
	return v
}

// await waits until an expression is true, for as long as a slow machine may take.
func (b *tab) await(js string) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); !eval[bool](b, js); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("waited in vain for %s; the page has\n%s\n%s", js, eval[string](b, `document.body.innerText`), b.complaints())
		}
	}
}

// press presses keys of the keyboard.
func (b *tab) press(keys string) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys))
}

// command is a step that is one command of the protocol.
func command[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}
