package main

import (
	"fmt"
	"slices"
	"strings"
)

// failed says whether anything was run and was not as it should be, or nothing was run at all.
func (m *matrix) failed() bool {
	for _, err := range m.results {
		if err != nil {
			return true
		}
	}
	return len(m.results) == 0
}

// String is the table, in Markdown, and what there is to say about its cells.
func (m *matrix) String() string {
	var notes []string
	note := func(format string, args ...any) string {
		text := fmt.Sprintf(format, args...)
		i := slices.Index(notes, text)
		if i < 0 {
			i = len(notes)
			notes = append(notes, text)
		}
		return fmt.Sprintf(" [%d]", i+1)
	}
	var b strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	head, line := []string{""}, []string{"---"}
	for _, c := range m.clients {
		title := c.name + " " + c.version
		if m.missing[c.name] != nil {
			title = c.name
		}
		if c.partly != "" {
			title += note("%s: %s", c.name, c.partly)
		}
		head, line = append(head, title), append(line, "---")
	}
	row(head...)
	row(line...)
	for _, test := range m.cases {
		cells := []string{test.name}
		for _, c := range m.clients {
			switch why := c.cannot[test.name]; {
			case m.missing[c.name] != nil:
				cells = append(cells, "skipped"+note("%s is not installed: %v", c.name, m.missing[c.name]))
			case why != "":
				cells = append(cells, "can't"+note("%s: %s", c.name, why))
			default:
				cells = append(cells, m.verdict(c, test, note))
			}
		}
		row(cells...)
	}
	fmt.Fprintf(&b, "\nRoutes: %s.\n", m.routeNames())
	for i, n := range notes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, n)
	}
	return b.String()
}

// verdict is a cell's text: on how many of the routes it was as it should be.
func (m *matrix) verdict(c *client, test testCase, note func(string, ...any) string) string {
	tried, well := 0, 0
	var bad strings.Builder
	for _, to := range m.routes {
		err, ok := m.results[cell{c.name, test.name, to.name}]
		if !ok {
			continue
		}
		tried++
		if err == nil {
			well++
			continue
		}
		fmt.Fprintf(&bad, ", FAILED by %s%s", to.name, note("%s, %s, %s: %s", c.name, test.name, to.name, oneLine(err)))
	}
	return fmt.Sprintf("%d of %d%s", well, tried, bad.String())
}

func (m *matrix) routeNames() string {
	var names []string
	for _, to := range m.routes {
		name := to.name
		if to.proxy {
			if m.proxy != "" {
				name = strings.Replace(name, "nginx", "nginx "+m.proxy, 1)
			} else {
				name += " (skipped, " + oneLine(m.missing["nginx"]) + ")"
			}
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
