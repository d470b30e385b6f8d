# Sends the log of logins away, where who comes in cannot change it.
dnf install -y -q rsyslog
systemctl enable --now rsyslog
