package main

import "testing"

func TestEveryMutantFitsTheSource(t *testing.T) {
	for _, m := range mutants {
		if err := m.fits("../.."); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if m.before == m.after {
			t.Errorf("%s changes nothing", m.name)
		}
	}
}
