// Command screenshot makes the README's picture: it builds the example, has clients upload to it, one of whose keys is
// slow, and takes what a browser shows of its page after a while.
//
//	go run ./screenshot -o ../../docs/flowdebug.png
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/chromedp/chromedp"

	"example.com/flow/flowdebug/browser"
)

func main() {
	file := flag.String("o", "flowdebug.png", "`file` to write")
	width := flag.Int64("width", 1000, "`pixels` of the window")
	dark := flag.Bool("dark", false, "as one who prefers dark sees it")
	after := flag.Duration("after", 190*time.Second, "how `long` the example has run")
	examples := flag.String("examples", "../../examples", "`directory` of the examples' module")
	flag.Parse()
	picture, err := take(context.Background(), *examples, *after, *width, *dark)
	if err == nil {
		err = os.WriteFile(*file, picture, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "screenshot:", err)
		os.Exit(1)
	}
}

// take returns a PNG of the example's page.
func take(ctx context.Context, examples string, after time.Duration, width int64, dark bool) ([]byte, error) {
	x, err := start(ctx, examples, after*3/4)
	if err != nil {
		return nil, err
	}
	defer x.stop()
	b, cancel, err := browser.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	time.Sleep(after)
	if err := chromedp.Do(b,
		chromedp.EmulateViewport(width, 1000),
		browser.Prefer("prefers-color-scheme", scheme),
		chromedp.Navigate(x.page),
		chromedp.WaitVisible("#keys tbody th"),
		chromedp.Sleep(2*time.Second), // what flashes has done so
	); err != nil {
		return nil, err
	}
	return chromedp.Run(b, chromedp.FullScreenshot(100))
}
