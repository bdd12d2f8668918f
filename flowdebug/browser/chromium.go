// Package browser drives flowdebug's page in a real Chromium, headless: for its tests, and for the picture in the README.
// It is a module of its own, so that nobody who uses flow gets a browser's driver with it.
package browser

import (
	"context"
	"errors"
	"os/exec"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// ErrNoChromium is why Open can't: there is nothing to drive.
var ErrNoChromium = errors.New("no Chromium on this machine (Debian: apt-get install chromium)")

// names are those under which it is installed.
var names = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}

// Open starts a Chromium that has never been used, and returns the context that chromedp.Run takes. cancel ends it, and
// removes what it has kept.
func Open(ctx context.Context) (browser context.Context, cancel context.CancelFunc, err error) {
	path := ""
	for _, name := range names {
		if path, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if path == "" {
		return nil, nil, ErrNoChromium
	}
	allocator, free := chromedp.NewExecAllocator(ctx,
		chromedp.ExecPath(path), chromedp.Headless, chromedp.DisableGPU,
		chromedp.NoSandbox, // it can't have one as root; it visits nothing but loopback
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), // small in containers
	)
	browser, end := chromedp.NewContext(allocator)
	cancel = func() { end(); free() }
	if err := chromedp.Do(browser); err != nil {
		cancel()
		return nil, nil, err
	}
	return browser, cancel, nil
}

// Prefer has media queries for a feature answer value.
func Prefer(feature, value string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: feature, Value: value}},
		})
		return err
	})
}
