# Installs the application and starts it under systemd.
dnf install -y -q python3.11 python3.11-pip
# Its home, which libpq looks into, must not be under /home, which its unit hides.
id web > /dev/null 2>&1 || useradd --system --home-dir /opt/web --shell /sbin/nologin web
install -d /opt/web
cat > /opt/web/requirements.txt <<'PACKAGES'
@packages@
PACKAGES
python3.11 -m venv /opt/web/venv
/opt/web/venv/bin/python -c 'import gunicorn, psycopg, boto3' 2> /dev/null || \
    /opt/web/venv/bin/pip install --quiet --require-hashes -r /opt/web/requirements.txt
[ -s /opt/web/rds.pem ] || curl -sSf --connect-timeout 5 --retry 5 -o /opt/web/rds.pem \
    https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem
cat > /opt/web/index.py <<'SOURCE'
@source@
SOURCE
cat > /opt/web/environment <<'VARIABLES'
AWS_DEFAULT_REGION=@region@
DATABASE_HOST=@host@
DATABASE_PORT=@port@
DATABASE_NAME=@database@
DATABASE_CA=/opt/web/rds.pem
DATABASE_TOKEN=/run/web-token/token
VARIABLES
xargs -a /opt/web/environment sh -c 'exec env "$@" SECRET_ARN=@secret@ \
    /opt/web/venv/bin/python /opt/web/index.py migrate' sh
cat > /etc/systemd/system/web-token.service <<'UNIT'
[Unit]
Description=The tokens by which the web application connects to its database
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0
[Service]
Group=web
UMask=0027
RuntimeDirectory=web-token
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=yes
EnvironmentFile=/opt/web/environment
# A token is good for 15 minutes.
ExecStart=/bin/sh -c 'while /opt/web/venv/bin/python /opt/web/index.py token > /run/web-token/new; \
    do mv /run/web-token/new /run/web-token/token; sleep 300; done'
Restart=always
RestartSec=1
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
CapabilityBoundingSet=
[Install]
WantedBy=multi-user.target
UNIT
cat > /etc/systemd/system/web.service <<'UNIT'
[Unit]
Description=The web application
After=network-online.target web-token.service
Wants=network-online.target web-token.service
StartLimitIntervalSec=0
[Service]
User=web
WorkingDirectory=/opt/web
EnvironmentFile=/opt/web/environment
# Kept longer than the load balancer keeps them: no request meets a connection that is closing.
ExecStart=/opt/web/venv/bin/gunicorn --bind 0.0.0.0:@web_port@ --workers 2 --threads 32 \
    --keep-alive 75 --timeout 30 --graceful-timeout 30 --no-control-socket --access-logfile - \
    index:web
StandardOutput=append:/var/log/web.log
StandardError=append:/var/log/web.log
Restart=always
RestartSec=1
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
# The instance's role, which may read the master's secret, is root's alone.
IPAddressDeny=169.254.169.254 fd00:ec2::254
ProtectProc=invisible
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
CapabilityBoundingSet=
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
SystemCallFilter=@system-service
[Install]
WantedBy=multi-user.target
UNIT
printf '/var/log/web.log {\n    daily\n    rotate 3\n    copytruncate\n    missingok\n}\n' \
    > /etc/logrotate.d/web
systemctl daemon-reload
systemctl enable --now web-token web
curl -sSf -o /dev/null --retry 300 --retry-delay 1 --retry-max-time 300 --retry-all-errors \
    http://127.0.0.1:@web_port@/readyz
