# networkd translates what comes from this network, and does so again after each reload and boot.
cat > /etc/systemd/network/10-nat.netdev <<'NETDEV'
[NetDev]
Name=nat0
Kind=bridge
NETDEV
cat > /etc/systemd/network/10-nat.network <<'NETWORK'
[Match]
Name=nat0
[Network]
IPMasquerade=ipv4
LinkLocalAddressing=no
ConfigureWithoutCarrier=yes
[Address]
Address=@inside@
AddPrefixRoute=no
NETWORK
networkctl reload
cat > /usr/local/sbin/nat <<'SCRIPT'
#!/bin/bash
# Makes this instance the way out, at each boot; then has it replaced when it is none any more.
set -euo pipefail
instance=$(cat /var/lib/cloud/data/instance-id)
case $AWS_DEFAULT_REGION in cn-*) suffix=com.cn ;; *) suffix=com ;; esac
inside=@inside@
works() {  # whether it forwards, and translates what has an inside address
    [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] && curl -s -o /dev/null -m 5 \
        --interface "${inside%/*}" "https://ec2.$AWS_DEFAULT_REGION.amazonaws.$suffix"
}
# A response may be lost while the address changes; everything here may be repeated.
aws() { command aws --cli-connect-timeout 5 --cli-read-timeout 5 "$@"; }
aws ec2 modify-instance-attribute --instance-id "$instance" --no-source-dest-check
# First the routes, to an instance that gets out, then the address: nobody waits for either.
for table in @tables@; do
    route=(--route-table-id "$table" --destination-cidr-block @anywhere@ --instance-id "$instance")
    aws ec2 replace-route "${route[@]}" || aws ec2 create-route "${route[@]}"
done
aws ec2 associate-address --instance-id "$instance" --allocation-id @address@ --allow-reassociation
systemd-notify --ready
failures=0
while [ $failures -lt 3 ]; do
    sleep 30
    if works; then failures=0; else failures=$((failures + 1)); fi
done
# It says so once, and AWS would ignore it in the grace period: of one that never worked.
aws autoscaling set-instance-health --instance-id "$instance" --health-status Unhealthy \
    --no-should-respect-grace-period || systemctl poweroff  # it cannot get out at all
SCRIPT
chmod +x /usr/local/sbin/nat
cat > /etc/systemd/system/nat.service <<UNIT
[Unit]
Description=The way out of the private subnets
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=all
Environment=AWS_DEFAULT_REGION=$AWS_DEFAULT_REGION
ExecStart=/usr/local/sbin/nat
Restart=on-failure
RestartSec=5
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable nat
until systemctl start nat; do sleep 5; done
