// Package bench is `make bench`: it measures the product with `parley load` and judges the figures.
//
// A machine is as fast as its neighbours let it be, so rates are judged as ratios to a yardstick that runs in
// turns with the product in the same minutes (cmd/bare: a Go server without features, one INSERT per message);
// the ratios to reach are those of a better server of that kind. Sizes are judged as they are. Every day the
// same measurements run for a second each and only their outcomes are judged, never their speed.
package bench
