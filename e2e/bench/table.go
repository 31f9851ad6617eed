package main

import (
	"fmt"
	"slices"
	"strings"
)

// quantile returns the value below which that part of the values is, between two
// of them when it falls there; part is 0 to 1. There must be a value.
func quantile(values []float64, part float64) float64 {
	s := slices.Sorted(slices.Values(values))
	place := part * float64(len(s)-1)
	below := int(place)
	above := min(below+1, len(s)-1)
	return s[below] + (s[above]-s[below])*(place-float64(below))
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// spread renders the median, and in parentheses where the middle half of the
// values is.
func spread(values []float64, format string) string {
	return fmt.Sprintf(format+" ("+format+"–"+format+")", median(values), quantile(values, 0.25), quantile(values, 0.75))
}

// ratios divides what two paths had in the same round: what slows both down, as
// other work on the machine does, is not in it.
func ratios(of, to []float64) []float64 {
	var all []float64
	for i := range of {
		all = append(all, of[i]/to[i])
	}
	return all
}

// A ratio is a row of the second table.
type ratio struct{ of, to *path }

// tables renders what was measured as Markdown: all paths, and then the ratios.
func tables(paths []*path, compare []ratio, streams int) string {
	var b strings.Builder
	b.WriteString(heading("path", streams, false))
	for _, p := range paths {
		b.WriteString(row(p.name, func(m int) string { return spread(p.figures[m], measures[m].format) }))
	}
	b.WriteString("\n" + heading("of / to", streams, true))
	for _, r := range compare {
		b.WriteString(row(r.of.name+" / "+r.to.name, func(m int) string {
			return spread(ratios(r.of.figures[m], r.to.figures[m]), "%.2f")
		}))
	}
	return b.String()
}

// heading names the columns; a ratio has no unit.
func heading(first string, streams int, bare bool) string {
	return row(first, func(m int) string {
		name := strings.Replace(measures[m].name, "%d", fmt.Sprint(streams), 1)
		if bare {
			name = strings.TrimSuffix(strings.TrimSuffix(name, ", Mbit/s"), ", µs")
			name = strings.Replace(name, " µs ", " time ", 1)
		}
		return name
	}) + "|" + strings.Repeat("---|", len(measures)+1) + "\n"
}

func row(first string, cell func(measure int) string) string {
	cells := []string{first}
	for m := range measures {
		cells = append(cells, cell(m))
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}
