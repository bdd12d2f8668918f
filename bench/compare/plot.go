package main

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"example.com/flow/bench/internal/contender"
	"example.com/flow/bench/internal/report"
)

const plotName = "throughput.svg"

var barColors = []color.Color{
	color.RGBA{0x7f, 0x7f, 0x7f, 0xff}, color.RGBA{0x1f, 0x77, 0xb4, 0xff}, color.RGBA{0xae, 0xc7, 0xe8, 0xff},
	color.RGBA{0x2c, 0xa0, 0x2c, 0xff}, color.RGBA{0xff, 0x7f, 0x0e, 0xff}, color.RGBA{0xff, 0xbb, 0x78, 0xff},
	color.RGBA{0xd6, 0x27, 0x28, 0xff}, color.RGBA{0x94, 0x67, 0xbd, 0xff}, color.RGBA{0x8c, 0x56, 0x4b, 0xff},
}

// plotTo draws the first table: a group of bars for each column.
func plotTo(tables []*table, file string) error {
	for _, t := range tables {
		if t.row == keysRow {
			return t.plot(file)
		}
	}
	return nil
}

func (t *table) plot(file string) error {
	plot.DefaultFont.Variant = "Sans"
	p := plot.New()
	p.Title.Text = t.title
	p.Y.Label.Text = "ns a message (less is better)"
	p.X.Label.Text = "keys"
	p.Y.Min = 0
	p.Legend.Top = true
	p.Legend.Left = true // of where it is moved to: so no reader's font makes names run into their colours
	p.Legend.XOffs = 7.4 * vg.Inch
	p.Legend.Padding = vg.Points(3)
	p.Legend.TextStyle.Font.Size = vg.Points(10)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	p.Add(grid)
	const width = 7
	var all []float64
	for i, c := range t.contenders {
		heights := make(plotter.Values, len(t.columns))
		for j, column := range t.columns {
			if list := t.values(c, column); len(list) > 0 {
				heights[j] = report.Median(list)
				all = append(all, heights[j])
			}
		}
		bars, err := plotter.NewBarChart(heights, vg.Points(width))
		if err != nil {
			return err
		}
		bars.LineStyle.Width = 0
		bars.Color = barColors[i%len(barColors)]
		bars.Offset = vg.Points(width * (float64(i) - float64(len(t.contenders)-1)/2))
		p.Add(bars)
		name := c
		if k := contender.Named(c); k.Order == "none" {
			name += " (no key order)"
		}
		p.Legend.Add(name, bars)
	}
	p.NominalX(t.columns...)
	const legend = 2.1 // as wide as so many groups
	p.X.Min, p.X.Max = -0.6, float64(len(t.columns))-0.5+legend
	if top := 100 * math.Ceil(report.Quantile(all, 0.95)/100); top < p.Y.Max { // one far outlier would make all others flat
		p.Y.Max = top
		p.Title.Text += fmt.Sprintf(" (bars above %s ns are cut off)", number(top))
	}
	return p.Save(10.5*vg.Inch, 4.5*vg.Inch, file)
}
