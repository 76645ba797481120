# docker build -t linq-etl .   Configuration and token come from outside; see docs/deploy.md.
FROM python:3.13-slim
# /data: a volume mounted there belongs to the user that writes a SQLite file into it.
RUN useradd --system --uid 10001 --create-home etl && install -d -o etl -m 700 /data
COPY . /src
RUN pip install --no-cache-dir --constraint /src/requirements.lock /src && rm -rf /src
USER 10001
WORKDIR /home/etl
ENTRYPOINT ["linq-etl"]
CMD ["sync"]
