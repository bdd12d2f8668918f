package main

import "testing"

// The list must not rot: each mutant's text stands in the source as it is, exactly once.
func TestEveryMutantFitsTheSource(t *testing.T) {
	names := map[string]bool{}
	for _, m := range mutants {
		if err := m.fits("../.."); err != nil {
			t.Error(err)
		}
		if names[m.name] {
			t.Errorf("%s: the name is there twice", m.name)
		}
		names[m.name] = true
	}
}
