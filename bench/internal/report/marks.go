package report

import (
	"fmt"
	"os"
	"strings"
)

// Renew replaces what is between the marks of the file: <!-- NAME: begin --> and <!-- NAME: end -->.
func Renew(file, name, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	renewed, err := between(string(old), name, text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(renewed), 0o644)
}

func between(old, name, text string) (string, error) {
	begin, end := "<!-- "+name+": begin -->", "<!-- "+name+": end -->"
	head, rest, began := strings.Cut(old, begin)
	_, tail, ended := strings.Cut(rest, end)
	if !began || !ended {
		return "", fmt.Errorf("needs the marks %s and %s", begin, end)
	}
	return head + begin + "\n" + text + end + tail, nil
}
