// Command gateway is the edge as a program of its own.
package main

import "github.com/parleychat/parley/gateway"

func main() { gateway.Main() }
