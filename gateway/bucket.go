package gateway

import "time"

// bucket limits the frames of one socket. It belongs to one goroutine at a time.
type bucket struct {
	// spent is when the bucket will be full again, since Gateway.start: a bucket
	// as one number (the generic cell rate algorithm).
	spent time.Duration
}

// take pays for one frame. If the bucket is empty it returns false and how long
// to wait; the frame still counts, so that a client that does not wait gets
// deeper. One that is a whole burst below empty gets false and no wait: it is
// not worth serving.
func (b *bucket) take(now time.Duration, perSecond float64, burst int) (ok bool, wait time.Duration) {
	each := time.Duration(float64(time.Second) / perSecond)
	room := each * time.Duration(burst)
	b.spent = max(b.spent, now) + each
	switch behind := b.spent - now; {
	case behind <= room:
		return true, 0
	case behind <= 2*room:
		return false, behind - room
	default:
		b.spent = now + 2*room
		return false, 0
	}
}
