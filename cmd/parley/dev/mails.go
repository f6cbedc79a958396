package dev

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/parleychat/parley/cmd/parley/mailbox"
	"github.com/parleychat/parley/pkg/service"
)

// mailers are the services that send mails.
var mailers = []string{"auth"}

// catchMails has the services send their mails to the sink, and shows them on the
// admin port. A service that the developer gives a mail server of its own keeps it.
func (p *process) catchMails(environ []string) error {
	host, port, err := net.SplitHostPort(p.stack.Mail.Addr)
	if err != nil {
		return fmt.Errorf("split the address of the mail sink: %w", err)
	}
	for _, name := range mailers {
		prefix := service.Prefix(name) + "MAIL_"
		if slices.ContainsFunc(environ, func(e string) bool { return strings.HasPrefix(e, prefix+"HOST=") }) {
			continue
		}
		// In front, so that what the developer sets wins.
		p.environ = append([]string{
			prefix + "HOST=" + host, prefix + "PORT=" + port, prefix + "SECURITY=none", prefix + "FROM=Parley <parley@localhost.localdomain>",
		}, p.environ...)
	}
	page, err := mailbox.New(p.stack.Mail, p.log)
	if err != nil {
		return err
	}
	p.admin.Handle(mailbox.Path, page)
	return nil
}
