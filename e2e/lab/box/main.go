// Command box is the program that the lab puts on its hosts and into its
// containers: it boots hosts, answers and asks over every kind of traffic, and
// measures. Each command prints one JSON object (or line) of what it saw.
package main

import (
	"github.com/isthmus-net/isthmus/e2e/lab/boot"
	"os"
)

func main() {
	boot.Main(os.Args[1:])
}
